"""Programs that show the library at work, one in each folder."""
