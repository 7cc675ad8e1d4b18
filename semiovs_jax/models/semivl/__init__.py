"""SemiVL: a CLIP image tower with the VLG head, and the key tables of its published weights."""
