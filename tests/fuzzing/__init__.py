"""Changes the bytes of valid files, and reads them: the result is right, or an `InputError`."""
