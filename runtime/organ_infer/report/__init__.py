"""The page of `--report`: predictions with thumbnails, filters and sorting, in one file."""
