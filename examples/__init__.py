"""Programs that show the library at work; each folder is one."""
