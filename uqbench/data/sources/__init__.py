"""Sources of labelled structures and the rules that split them."""

OUT_OF_DOMAIN = "out_of_domain"  # a split that some sources have: frames unlike any that is trained on
