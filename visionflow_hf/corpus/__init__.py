"""From a lab's files to a `datasets` corpus of image and fMRI pairs."""
