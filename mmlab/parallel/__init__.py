"""How a model is run and spread over devices, whatever it computes."""
