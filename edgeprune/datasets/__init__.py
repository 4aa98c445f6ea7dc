"""Labelled images: what is trained on, evaluated on and calibrated with."""
