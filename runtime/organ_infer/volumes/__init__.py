"""CT volumes and masks: read, checked against each other, and cut into crops around organs."""
