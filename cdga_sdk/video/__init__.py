"""Reading and writing video with exact timestamps."""
