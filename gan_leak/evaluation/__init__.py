"""How much leaked: a judge, measures with references, figures and the report."""
