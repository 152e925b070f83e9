"""One encrypted file with what makes a pylon: its identity, its settings and its books; and back again."""
