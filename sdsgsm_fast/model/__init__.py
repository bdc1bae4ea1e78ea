"""The user's model as the rest of the package sees it."""
