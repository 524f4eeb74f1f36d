"""What a fold, an equalization or a conversion tells its user: plain data, tables, JSON."""
