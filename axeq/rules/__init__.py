"""What becomes of jobs: each command that axeq sends, as generators that know neither sync nor async."""
