"""gkp-cal: grouped kernels chosen on calibration images, and what is left of the weights in closed form."""
