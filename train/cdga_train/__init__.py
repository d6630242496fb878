"""Makes a checkpoint: trains a segmentation network and adapts it to unlabelled footage with CDGA."""
