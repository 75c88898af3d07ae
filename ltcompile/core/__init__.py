"""The nouns that the stages hand to each other: frozen, validated when built, saved as data."""
