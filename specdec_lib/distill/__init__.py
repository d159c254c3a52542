"""How the shipped drafts were made: distilled from the target, with text that the target wrote."""
