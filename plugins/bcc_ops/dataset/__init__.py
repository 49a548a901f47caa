"""Images: which there are, whether they may be used, and on which side of the split they lie."""
