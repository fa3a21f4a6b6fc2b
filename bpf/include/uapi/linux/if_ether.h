/* Not needed: no program here looks at its content. */
