"""What the demo starts from, made by the project itself: an instruction set and a tiny untrained model. Stages like
all others."""
