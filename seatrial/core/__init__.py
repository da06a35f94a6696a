"""The abstractions that everything else is made of; knows no concrete method."""
