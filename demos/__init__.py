"""Programs around the course that no lesson imports."""
