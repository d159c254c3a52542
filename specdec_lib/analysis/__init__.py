"""Read rows and explain them: metrics, theory, intervals, costs, tables, figures and what they show."""
