"""Kept on disk, whole or not at all: masks, the cache, journals, files of the user's."""
