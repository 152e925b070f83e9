"""What gets paid: one file per wallet."""
