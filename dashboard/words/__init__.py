"""What the product says: phrases, numbers and times in one voice, for pages and figures alike."""
