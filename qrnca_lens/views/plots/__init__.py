"""Results to plotly figures. Touches no model."""
