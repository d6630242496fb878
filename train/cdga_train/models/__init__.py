"""Networks: the segmentation networks, the grouping network and the discriminator."""
