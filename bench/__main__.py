"""`python -m bench`: measure everything and print the README's tables."""
import sys

from .figures import main

sys.exit(main())
