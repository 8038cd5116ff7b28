"""Write measured cells and answers in the formats of other tools and of public collections."""
