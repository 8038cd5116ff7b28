"""Its presence puts tests/ on sys.path, so that test modules can import `pico`."""
