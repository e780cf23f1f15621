"""Congestion controls, by the names under which a user chooses them."""
