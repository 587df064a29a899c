"""Model servers: plan of a stack's servers, inventory of models, `vestry models`, doctor checks."""
