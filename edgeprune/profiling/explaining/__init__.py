"""Why a layer is not as fast as its MACs promise, and what to try."""
