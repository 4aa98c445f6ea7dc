"""LFPC (paper 004, chapter 6): each layer learns which criterion prunes it."""
