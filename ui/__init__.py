"""The page's own parts: what app.py puts together. Nothing in pem or analysis imports from here."""
