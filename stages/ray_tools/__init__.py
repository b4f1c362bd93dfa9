"""Work on Ray that several stages share."""
