"""Charts of the lessons, one file for each subject."""
