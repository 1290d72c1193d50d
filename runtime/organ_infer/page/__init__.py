"""What the pages of results share: their head with its content security policy, their style, texts and pictures."""
