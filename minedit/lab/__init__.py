"""The kernel lab: attention functions against float64, and timed, on the shapes of Stable Diffusion v1.4."""
