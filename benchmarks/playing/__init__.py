"""What the comparison and the graveyard share: situations are played on libraries, and seen."""
