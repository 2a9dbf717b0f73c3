"""Attacks on the features of split inference."""
