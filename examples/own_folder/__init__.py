"""A data set that is a folder: a table, an image and a note per patient, four classes, three attributes."""
