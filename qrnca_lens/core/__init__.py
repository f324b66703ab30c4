"""What every room stands on: values, texts and files that a user gives, shapes, neurons, quadrature. Touches no model."""
