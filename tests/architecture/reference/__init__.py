"""The generated pages of docs/, each made from what the code says of itself; `update_reference` writes them."""
