"""The stages of training, in their order."""

STEPS = {"vae": 9000, "text": 450, "unet": 9000, "judge": 3000, "instruct": 3000, "clip": 600}  # of the optimiser
STAGES = ("vae", "text", "unet", "judge", "assemble")  # which together make the embedded model
FEWEST = 256  # training scenes: a few batches
