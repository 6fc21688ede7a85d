"""`orlaif view`: a local page of what runs did: curves, signs of trouble, and the groups that they trained on."""
