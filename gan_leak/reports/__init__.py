"""Everything that is drawn or written: figures, pages and tables."""
