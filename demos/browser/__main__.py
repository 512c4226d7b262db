"""`python -m demos.browser`: prepare the model and the page, then serve them on this machine."""
import sys

from .server import main

sys.exit(main())
