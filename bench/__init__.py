"""What is promised about speed, measured as ratios in one run."""
