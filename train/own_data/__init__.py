"""Data sets of the user: folders of images and .npz files, checked before the first epoch."""
